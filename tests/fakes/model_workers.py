"""The model processes that an inference process has started."""

import psutil


def model_workers(inference: psutil.Process, model: str = "", *, recursive: bool = True) -> list[psutil.Process]:
    """Return those that live, of one model or of all, by pid. Those that fail to load come and go.

    Behind an Envoy they are children of children; `recursive` finds them too.
    """
    runs = f"services.inference.worker {model}/" if model else "services.inference.worker"
    found = []
    for child in inference.children(recursive=recursive):
        try:
            if runs in " ".join(child.cmdline()) and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return sorted(found, key=lambda one: one.pid)
