"""Many adapters on one base at a time: they come and go, a thread answers, and answers become text as they are made."""
