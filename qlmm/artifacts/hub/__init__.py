"""Adapters to and from the Hub."""
