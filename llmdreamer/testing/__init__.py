"""Checks for the tests of other packages. They need torch, but no test framework."""
