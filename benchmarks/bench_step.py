"""What a penalty adds to an optimizer step, in Markdown: `python benchmarks/bench_step.py`.

The same as `torchlasso bench step`; the measuring is in `torchlasso/bench/`.
"""

from torchlasso.bench.step import main

if __name__ == "__main__":
    main()
