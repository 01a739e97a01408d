from benchmarks.options import Options
def run(options: Options) -> dict:
    raise NotImplementedError
