"""Every name of TensorRT's Python API that exporter and runtime use. A test holds the list against the code, by the names of variables,
and against the libraries that can be imported without a GPU: a call that NVIDIA renames fails there and not on a user's machine.
"""

from __future__ import annotations

VARIABLES: dict[str, str] = {
    "builder": "Builder",
    "cache": "ITimingCache",
    "config": "IBuilderConfig",
    "connected": "IFullyConnectedLayer",
    "context": "IExecutionContext",
    "convolution": "IConvolutionLayer",
    "deconvolution": "IDeconvolutionLayer",
    "einsum": "IEinsumLayer",
    "engine": "ICudaEngine",
    "inspector": "EngineInspector",
    "layer": "ILayer",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "problem": "ParserError",
    "product": "IMatrixMultiplyLayer",
    "profile": "IOptimizationProfile",
    "runtime": "Runtime",
    "tensor": "ITensor",
}
"""What a variable of these names is, in the files that talk to TensorRT, whatever stands before it (`self._engine`, `parsed.network`)."""

RUNNING: dict[str, tuple[str, ...]] = {
    "DataType": ("FLOAT", "HALF", "BF16", "INT64", "INT32", "INT8", "UINT8", "BOOL"),
    "EngineInspector": ("execution_context", "get_engine_information"),
    "ICudaEngine": (
        "create_engine_inspector",
        "create_execution_context",
        "get_tensor_dtype",
        "get_tensor_format",
        "get_tensor_location",
        "get_tensor_mode",
        "get_tensor_name",
        "get_tensor_profile_shape",
        "get_tensor_shape",
        "num_io_tensors",
    ),
    "IExecutionContext": ("execute_async_v3", "get_tensor_shape", "infer_shapes", "set_input_shape", "set_tensor_address"),
    "ILogger": ("Severity", "log"),
    "LayerInformationFormat": ("JSON",),
    "Runtime": ("deserialize_cuda_engine", "engine_host_code_allowed"),
    "TensorFormat": ("LINEAR",),
    "TensorIOMode": ("INPUT",),
    "TensorLocation": ("DEVICE",),
}
"""Class → what a runtime uses of it; also in the libraries that only run plans."""

BUILDING: dict[str, tuple[str, ...]] = {
    "Builder": ("build_serialized_network", "create_builder_config", "create_network", "create_optimization_profile"),
    "BuilderFlag": ("TF32", "VERSION_COMPATIBLE"),
    "HardwareCompatibilityLevel": ("AMPERE_PLUS",),
    "IBuilderConfig": (
        "add_optimization_profile",
        "builder_optimization_level",
        "clear_flag",
        "create_timing_cache",
        "get_flag",
        "get_memory_pool_limit",
        "get_tactic_sources",
        "hardware_compatibility_level",
        "max_aux_streams",
        "profiling_verbosity",
        "progress_monitor",
        "set_flag",
        "set_memory_pool_limit",
        "set_tactic_sources",
        "set_timing_cache",
    ),
    "IConvolutionLayer": ("kernel_size_nd", "num_groups"),
    "IDeconvolutionLayer": ("kernel_size_nd", "num_groups"),
    "IEinsumLayer": ("equation",),
    "ILayer": ("get_input", "get_output", "metadata", "name", "num_inputs", "num_outputs", "type"),
    "IMatrixMultiplyLayer": ("op0",),
    "INetworkDefinition": ("get_input", "get_layer", "get_output", "num_inputs", "num_layers", "num_outputs"),
    "IOptimizationProfile": ("set_shape",),
    "IProgressMonitor": ("phase_finish", "phase_start", "step_complete"),
    "ITensor": ("dtype", "is_network_output", "name", "shape"),
    "ITimingCache": ("serialize",),
    "LayerType": ("CONVOLUTION", "DECONVOLUTION", "EINSUM", "MATRIX_MULTIPLY"),
    "MatrixOperation": ("TRANSPOSE",),
    "MemoryPoolType": ("WORKSPACE",),
    "NetworkDefinitionCreationFlag": ("STRONGLY_TYPED",),
    "OnnxParser": ("get_error", "num_errors", "parse_from_file"),
    "ParserError": ("desc", "node", "node_name", "node_operator"),
    "ProfilingVerbosity": ("DETAILED",),
    "TacticSource": ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"),
}
"""Class → what the exporter uses of it, in every library from TensorRT 10 on."""

BUILDING_AHEAD: dict[str, tuple[str, ...]] = {
    "ComputeCapability": ("SM86", "SM89", "SM120"),
    "IBuilderConfig": ("num_compute_capabilities", "set_compute_capability"),
}
"""Class → what only TensorRT-RTX has."""

GONE: dict[str, tuple[str, ...]] = {
    "BuilderFlag": ("FP16", "OBEY_PRECISION_CONSTRAINTS"),
    "IFullyConnectedLayer": ("num_output_channels",),
    "ILayer": ("precision", "set_output_type"),
    "NetworkDefinitionCreationFlag": ("EXPLICIT_BATCH",),
}
"""Class → what older versions have (8.6, some of it 10) and 11 has not: used only after asking, or where the version is known."""
