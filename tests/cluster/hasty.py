"""The launcher in a hurry: its pauses are a hundredth, and its time runs as much faster. Here, or in a process.

A machine under load makes its calls take long on that clock; where a limit of seconds must not be hit, hurry less.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess

from emulator import NAMESPACE

from vqa_grpo.contract.failure import StepError
from vqa_grpo.jobs import cluster
from vqa_grpo.jobs.kind import kind_named
from vqa_grpo.jobs.kubernetes_api import KubernetesApi
from vqa_grpo.jobs.spec import JobSpec

SPEED = 100


def launch(spec: JobSpec, speed: int = SPEED) -> None:
    """The real client, with the credentials that KUBECONFIG leads to."""
    began = time.time()
    cluster.run(
        spec,
        KubernetesApi(NAMESPACE, kind_named(spec.kind)),
        sleep=lambda seconds: time.sleep(seconds / speed),
        clock=lambda: began + (time.time() - began) * speed,
    )


def start(spec: JobSpec, **variables: str) -> ForkServerProcess:
    """The same in a process of its own, which ends with the exit code of a step."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kubernetes.client", "kubernetes.config", "hasty"])
    process = context.Process(target=_run, args=(spec, {"KUBECONFIG": os.environ["KUBECONFIG"], **variables}))
    process.start()
    return process


def _run(spec: JobSpec, variables: Mapping[str, str]) -> None:
    os.environ.update(variables)
    from kubernetes.config import kube_config

    kube_config.KUBE_CONFIG_DEFAULT_LOCATION = variables["KUBECONFIG"]  # read when it was imported
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    try:
        launch(spec)
    except StepError as error:
        sys.exit(error.reason.exit_code)
