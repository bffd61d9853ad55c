"""The live demo: a page on this machine on which a request becomes a workflow, and the twin judges
it.

    python -m demo [--run runs/quickstart] [--model DIR] [--host 127.0.0.1] [--port 8000]

RUN is a run directory with at least phase 1 finished; its stages answer, and DIR, any stage's or
another HF directory. Needs the extra `demo` (pip install -e '.[demo]', or `make demo`). Binds to
this machine alone unless --host says otherwise; nobody is asked to log in.
"""

import argparse


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", default="runs/quickstart", help="run directory")
    parser.add_argument("--model", help="HF directory of a further model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    asked = parser.parse_args()

    from experiments.config import guarded

    guarded(lambda: serve(asked.run, asked.model, asked.host, asked.port))


def serve(run_dir: str, directory: str | None, host: str, port: int) -> None:
    try:
        import uvicorn

        from demo.server import LOOPBACK, make_app
    except ImportError as error:
        raise OSError(f"{error}: expected the extra demo (pip install -e '.[demo]')") from None
    import dataclasses

    from demo.engine import Engine
    from experiments.config import of_run
    from experiments.stages.run import opened, say

    config = dataclasses.replace(of_run(run_dir), run_dir=run_dir)
    with opened(config, shared=True) as run:
        engine = Engine(run, directory)
        try:
            for twin in (run.twins("evaluate"), engine.counting):
                twin.start()
            say("demo: tuning the rule")
            engine.methods  # noqa: B018, cached
            say(f"demo: http://{host}:{port}/ (Ctrl-C ends it)")
            uvicorn.run(
                make_app(engine, LOOPBACK if host in LOOPBACK else ["*"]),
                host=host,
                port=port,
                log_level="warning",
                server_header=False,
            )
        finally:
            engine.close()


if __name__ == "__main__":
    main()
