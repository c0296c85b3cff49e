"""Penalties: frozen objects that know their value, proximal map, residual and largest useful strength."""
