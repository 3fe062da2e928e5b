"One process imports what is slow to import; each notebook is then tested in a fork of it."
import atexit, importlib, json, os, signal, sys, traceback

SLOW = """IPython h5netcdf h5py matplotlib.pyplot nbdev.test pandas scipy.optimize scipy.stats torch
          torch.func xarray"""


def main():
    "For each line of standard input, [notebook, log, seconds]: answer with its exit status."
    for name in SLOW.split(): importlib.import_module(name)
    for line in sys.stdin:
        notebook, log, seconds = json.loads(line)
        if not (pid := os.fork()): test(notebook, log, seconds)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def test(notebook, log, seconds):
    "As `nbdev_test --path notebook --n_workers 0` does it, in a process of its own."
    from nbdev.test import nbdev_test
    signal.alarm(seconds)
    for stream, end in enumerate([os.open(os.devnull, os.O_RDONLY), *[os.open(log, 0o1102)] * 2]):
        os.dup2(end, stream)
    try:
        nbdev_test(path=notebook, n_workers=0)
        status = 0
    except SystemExit as e: status = int(e.code or 0)
    except BaseException: status = traceback.print_exc() or 1
    atexit._run_exitfuncs()                    # and no more: taking modules down takes a second
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__": main()
