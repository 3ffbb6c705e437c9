"""What people and services touch: command line, benchmarks."""
