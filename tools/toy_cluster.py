"""A Dask scheduler and workers on this machine, each a process of its own, for tests: real ones, which can be killed.

`with ToyCluster(2, folder) as cluster:`, or `ToyCluster(2, folder).start()` and `.stop()` over several cells, gives `cluster.address`, `cluster.scheduler` and `cluster.workers`; `cluster.add()` starts one more"""
import json, os, subprocess, sys, time
from pathlib import Path

class ToyCluster:
    "A scheduler and its workers; what still runs at the end is killed"
    def __init__(self, n, folder): self.n,self.folder,self.workers = n,Path(folder),[]

    def _dask(self, *words): return subprocess.Popen([sys.executable, '-m', 'dask', *map(str, words)], stderr=subprocess.DEVNULL, cwd=self.folder, env={**os.environ, 'PYTHONPATH':os.pathsep.join([str(self.folder), os.environ.get('PYTHONPATH', '')])})

    def add(self):
        "Start a worker with one thread; it is in `workers` as well"
        self.workers.append(self._dask('worker', self.address, '--nthreads', 1, '--no-dashboard', '--no-nanny', '--local-directory', self.folder/f'dask{len(self.workers)}'))
        return self.workers[-1]

    def start(self):
        "Start all, and give the cluster back"
        told = self.folder/'scheduler.json'
        self.scheduler = self._dask('scheduler', '--host', '127.0.0.1', '--port', 0, '--no-dashboard', '--scheduler-file', told)
        for _ in range(1200):
            if told.exists(): break
            time.sleep(.05)
        else: raise TimeoutError('the scheduler has not said where it is')
        self.address = json.loads(told.read_text())['address']
        for _ in range(self.n): self.add()
        return self

    def stop(self):
        "Kill what still runs"
        for process in (*self.workers, self.scheduler): process.kill(); process.wait()

    def __enter__(self): return self.start()
    def __exit__(self, *error): self.stop()
