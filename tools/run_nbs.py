#!/usr/bin/env python3
"""Run notebooks and keep their outputs, skipping what nbdev_test skips: `eval: false` cells and the flags of settings.ini.

`python tools/run_nbs.py [--flags slow] [--timing] nbs/00_config.ipynb ...` (all notebooks when none is named)"""
import argparse, os, sys, time
from pathlib import Path
from execnb.nbio import read_nb, write_nb
from execnb.shell import CaptureShell
from nbdev.config import get_config
from nbdev.processors import FrontmatterProc
from nbdev.process import NBProcessor

def skipped(cell, flags):
    "Is this one of the cells that nbdev_test does not run?"
    if cell.cell_type!='code': return True
    directives = getattr(cell, 'directives_', None) or {}
    return 'nbdev_export(' in cell.source or directives.get('eval:', [''])[0].lower()=='false' or bool(flags & directives.keys())

def run_nb(path, flags):
    "Run `path` in its folder from a fresh shell, write its outputs back; the traceback if a cell failed"
    nb,marked = read_nb(path),NBProcessor(path, procs=FrontmatterProc, process=True).nb
    skip = {i for i,c in enumerate(marked.cells) if skipped(c, flags)}
    for i,c in enumerate(nb.cells):
        if i not in skip: c.outputs = []
    shell,old = CaptureShell(path),os.getcwd()
    os.chdir(path.parent); sys.path.insert(0, '.')
    try: shell.run_all(nb, exc_stop=True, preproc=lambda c: c.idx_ in skip)
    except Exception: return shell.prettytb(fname=path)
    finally: os.chdir(old)
    write_nb(nb, path)

if __name__=='__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('notebooks', nargs='*', type=Path); parser.add_argument('--flags', default='', help='flagged cells to run all the same'); parser.add_argument('--timing', action='store_true')
    args,failed = parser.parse_args(),0
    os.environ['IN_TEST'] = '1'
    flags = set(get_config().tst_flags.split())-set(args.flags.split())
    for path in args.notebooks or sorted(Path('nbs').rglob('[0-9i]*.ipynb')):
        start,trouble = time.time(),run_nb(path.resolve(), flags)
        if trouble: failed += 1; print(trouble, file=sys.stderr)
        if args.timing: print(f'{path.name:32} {time.time()-start:6.1f} s', flush=True)
    sys.exit(bool(failed))
