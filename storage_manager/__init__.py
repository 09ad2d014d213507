"""Keep a session store under its size limit without ever losing a session the policy did not choose."""

__version__ = "1.0.0"
