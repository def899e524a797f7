"""How a volume's NBD socket becomes what its user asked for."""
