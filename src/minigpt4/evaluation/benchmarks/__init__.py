"""The benchmarks, one file each: what is read and asked, how answers are scored, and the rows of the table."""
