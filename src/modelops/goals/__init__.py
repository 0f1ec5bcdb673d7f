"""Goals: objectives that the coordinator pursues by itself, one recorded action after another."""
