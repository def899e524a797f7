"""blockfleetd: the composition root of the control plane."""
