"""Tests of the relay, on real sockets and both event loops where sockets are at stake."""
