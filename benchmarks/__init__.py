"""`python -m benchmarks`: speed and memory of dltrain against a hand-tuned loop and peers that do the same work.

`works` says what is trained, `implementations` how, `processes` runs each as a process of its own and measures it from
outside, `comparison` runs them in turns and compares results, `startup` measures what surrounds a training.
"""
