"""States and counts of versions, as the contracts word them."""

from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp
from inference import grpc_service_pb2 as oip
from inference import model_config_pb2 as config_pb
from inference import repository_pb2 as repository_pb
from inference import statistics_pb2 as statistics_pb
from interlock.inference.v1 import inference_service_pb2 as pb

from services.inference.convert.coalesced import micros
from services.inference.convert.tensors import NUMBERS
from services.inference.domain.model_host import ModelHost
from services.inference.domain.ports import WorkerExit
from services.inference.domain.replica import Replica, sorted_hosts
from services.inference.domain.statistic import BatchStatistic, Duration
from services.inference.domain.tensor import TensorSpec
from services.inference.domain.version import LoadState

PLATFORM: Final = "onnx_onnxv1"
"""What the Open Inference Protocol calls an ONNX model; the router says the same."""
CONFIG_PLATFORM: Final = "onnxruntime_onnx"
"""What Triton's configuration calls it."""
BACKEND: Final = "onnxruntime"
_ON_CPU: Final = config_pb.ModelInstanceGroup.KIND_CPU
_INDEX_STATES: Final = {
    LoadState.FETCHING: "LOADING",
    LoadState.LOADING: "LOADING",
    LoadState.READY: "READY",
    LoadState.FAILED: "UNAVAILABLE",
    LoadState.UNLOADING: "UNLOADING",
}


def replica_to_proto(replica: Replica, frames_address: str) -> pb.WatchReplicaResponse:
    """Return all that the replica says of itself."""
    return pb.WatchReplicaResponse(
        replica_id=replica.replica_id,
        pool=replica.pool,
        versions=[_version_state(host) for host in sorted_hosts(replica.hosts.values())],
        epoch=replica.epoch,
        draining=replica.draining,
        frames_address=frames_address,
    )


def _version_state(host: ModelHost) -> pb.VersionState:
    statistic = host.dispatcher.statistic
    return pb.VersionState(
        model=host.key.model,
        version=host.key.version,
        state=pb.LoadState.ValueType(host.state),
        message=host.message,
        queue_time_us=micros(host.dispatcher.queue_time_s),
        queued_rows=host.dispatcher.queue.rows,
        execution_count=statistic.execution_count,
        inference_count=statistic.inference_count,
        ready_instances=host.dispatcher.instances,
        last_exit=_exit(host.last_exit) if host.last_exit is not None else None,
        worker_pids=host.worker_pids,
    )


def _exit(how: WorkerExit) -> pb.WorkerExit:
    return pb.WorkerExit(
        exit_code=how.exit_code,
        signal=how.signal,
        memory_bytes=how.memory_bytes,
        log_lines=how.lines,
        end_time=Timestamp(seconds=int(how.end_time)),
        pid=how.pid,
    )


def metadata_to_proto(host: ModelHost, versions: list[str]) -> oip.ModelMetadataResponse:
    """Return the tensors of a version."""
    return oip.ModelMetadataResponse(
        name=host.key.model,
        versions=versions,
        platform=PLATFORM,
        inputs=[_tensor_metadata(spec) for spec in host.spec.inputs],
        outputs=[_tensor_metadata(spec) for spec in host.spec.outputs],
    )


def _tensor_metadata(spec: TensorSpec) -> oip.ModelMetadataResponse.TensorMetadata:
    return oip.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype, shape=spec.shape)


def config_to_proto(host: ModelHost) -> config_pb.ModelConfig:
    """Return how a version is served, in Triton's words; dims leave the batch dimension out."""
    policy = host.dispatcher.queue.policy
    queue = host.dispatcher.queue
    batching = config_pb.ModelDynamicBatching(
        max_queue_delay_microseconds=micros(queue.max_delay_s),
        preferred_batch_size=policy.batch_sizes,
        default_queue_policy=config_pb.ModelQueuePolicy(max_queue_size=host.max_queue_rows),
    )
    return config_pb.ModelConfig(
        name=host.key.model,
        platform=CONFIG_PLATFORM,
        backend=BACKEND,
        max_batch_size=policy.max_batch_size,
        input=[
            config_pb.ModelInput(name=spec.name, data_type=_config_type(spec), dims=spec.trailing)
            for spec in host.spec.inputs
        ],
        output=[
            config_pb.ModelOutput(name=spec.name, data_type=_config_type(spec), dims=spec.trailing)
            for spec in host.spec.outputs
        ],
        dynamic_batching=batching if policy.max_batch_size > 1 else None,
        instance_group=[config_pb.ModelInstanceGroup(count=policy.instances, kind=_ON_CPU)],
        default_model_filename=host.spec.files[0].path if host.spec.files else "",
        metric_tags={"model": host.key.model, "version": host.key.version},
    )


def _config_type(spec: TensorSpec) -> config_pb.DataType.ValueType:
    # The numbers of our data types are Triton's.
    return config_pb.DataType.ValueType(NUMBERS[spec.datatype])


def statistics_to_proto(host: ModelHost) -> statistics_pb.ModelStatistics:
    """Return the counts of a version since it was loaded."""
    statistic = host.dispatcher.statistic
    memory = [statistics_pb.MemoryUsage(type="CPU", id=0, byte_size=host.memory_bytes)]
    return statistics_pb.ModelStatistics(
        name=host.key.model,
        version=host.key.version,
        last_inference=statistic.last_inference_ms,
        inference_count=statistic.inference_count,
        execution_count=statistic.execution_count,
        inference_stats=statistics_pb.InferStatistics(
            success=_duration(statistic.success),
            fail=_duration(statistic.fail),
            queue=_duration(statistic.queue),
            compute_input=_duration(statistic.compute_input),
            compute_infer=_duration(statistic.compute_infer),
            compute_output=_duration(statistic.compute_output),
        ),
        batch_stats=[_batch(size, statistic.batches[size]) for size in sorted(statistic.batches)],
        memory_usage=memory if host.memory_bytes else [],
    )


def _batch(size: int, statistic: BatchStatistic) -> statistics_pb.InferBatchStatistics:
    return statistics_pb.InferBatchStatistics(
        batch_size=size,
        compute_input=_duration(statistic.compute_input),
        compute_infer=_duration(statistic.compute_infer),
        compute_output=_duration(statistic.compute_output),
    )


def _duration(duration: Duration) -> statistics_pb.StatisticDuration:
    return statistics_pb.StatisticDuration(count=duration.count, ns=duration.ns)


def index_to_proto(host: ModelHost) -> repository_pb.RepositoryIndexResponse.ModelIndex:
    """Return one line of the repository's index."""
    return repository_pb.RepositoryIndexResponse.ModelIndex(
        name=host.key.model, version=host.key.version, state=_INDEX_STATES[host.state], reason=host.message
    )
