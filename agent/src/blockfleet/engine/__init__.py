"""The data-plane process, its control protocol and the client of that protocol."""
