"""Engines: the programs that run models, each a supervised tree of processes of its own."""
