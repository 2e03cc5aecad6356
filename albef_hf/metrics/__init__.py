"""What the evaluations report, each a module that `evaluate.load` reads from its folder, alone."""
