"""An engine whose rows go through the runner for GPUs, on the CPU."""

from models.gpu.dispatch import Kernels, plain_kernels
from pipeline.engine.engine import Engine
from pipeline.engine.gpu_runner import GpuRunner
from pipeline.engine.memory import Workspace
from pipeline.engine.runner import Runner, RunnerConfig


class EngineOfGpuRunners(Engine):
    """Takes the runner that other engines take on GPUs, with operators in plain torch unless `kernels` are others."""

    kernels: Kernels = plain_kernels()

    def _new_runner(self, how: RunnerConfig, workspace: Workspace) -> Runner:
        return GpuRunner(self.model, how, workspace, self._cancelled, self.kernels)
