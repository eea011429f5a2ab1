"""Runs the contract checks as tests of a reward author's own suite."""
