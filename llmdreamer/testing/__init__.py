"""Tests to be used by the tests of other packages: they need torch, and no test framework."""
