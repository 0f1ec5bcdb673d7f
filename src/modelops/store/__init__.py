"""The state file: tables, their migrations, and the named queries on them. Nobody else writes SQL."""
