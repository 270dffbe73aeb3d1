"""The suites: each reads its questions, says what counts as success, and sums up. One file for each."""
