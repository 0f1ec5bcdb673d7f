"""Learning jobs: from rows to a version that is proved in the serving engine before anybody can call it."""
