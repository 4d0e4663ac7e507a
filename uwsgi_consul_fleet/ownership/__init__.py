"""Whose a host is: the fleet's identity, and what lies on a host that is not the fleet's."""
