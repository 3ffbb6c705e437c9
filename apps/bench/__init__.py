"""The benchmarks, one file each, over one harness."""
