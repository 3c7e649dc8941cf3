"""Stage 4: benchmarks. One file each; they share the instruments that compare two answers."""
