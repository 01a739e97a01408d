"""`python -m benchmarks`: speed and memory of dltrain against a hand-tuned loop and other tools that do the same work.

`works` says what is trained, on what `synthetic` makes; `implementations` and `peers` say how; `comparison` runs them
in turns, each as a process of its own (`processes`), and compares times and results.

Each other topic has a file: `gpu`, `images` and `larger_than_memory` (data), `growth`, `memory`, `neighbours`, `sweeps`
(with `lightning_digits`), and `startup` with `imports` (what surrounds a training).
"""
