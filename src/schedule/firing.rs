//! What is done with jobs that are due.
