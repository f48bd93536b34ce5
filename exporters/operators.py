"""ONNX operators that a graph may hold, by need.

None has an output whose shape depends on the data (NonZero, NonMaxSuppression, Unique, Compress), none is control flow,
none draws random numbers, and none is of a custom domain: TensorRT builds them, and ONNX Runtime gives the same answer
whatever the batch.
"""

ARITHMETIC = frozenset(
    {"Abs", "Add", "And", "Cast", "Ceil", "Clip", "Cos", "Div", "Equal", "Exp", "Floor", "Greater", "GreaterOrEqual"}
    | {"Less", "LessOrEqual", "Log", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "ReduceL2"}
    | {"ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Round", "Sign", "Sin", "Sqrt", "Sub", "Where"}
)
LAYOUT = frozenset(
    {"Concat", "Constant", "ConstantOfShape", "Expand", "Flatten", "Gather", "Identity", "Pad", "Range", "Reshape"}
    | {"Shape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)
LAYERS = frozenset(
    {"BatchNormalization", "Elu", "Erf", "Gelu", "Gemm", "HardSigmoid", "HardSwish", "LayerNormalization", "LeakyRelu"}
    | {"LogSoftmax", "MatMul", "PRelu", "Relu", "Sigmoid", "Softmax", "Softplus", "Tanh"}
)
CONVOLUTION = frozenset(
    {"AveragePool", "Conv", "ConvTranspose", "DepthToSpace", "GlobalAveragePool", "GlobalMaxPool", "GroupNormalization"}
    | {"InstanceNormalization", "MaxPool", "SpaceToDepth"}
)
SAMPLING = frozenset({"GridSample", "Resize"})
CHOICE = frozenset({"ArgMax", "ArgMin", "GatherElements", "GatherND", "OneHot", "TopK"})
"""A fixed number of the best: the output's shape is known."""
SEQUENCE = frozenset({"CumSum", "Einsum", "ScatterElements", "ScatterND", "Trilu"})

CORE = ARITHMETIC | LAYOUT | LAYERS
QUANTISED = frozenset({"DequantizeLinear", "QuantizeLinear"})
"""Besides a kind's own, in an int8 or fp8 artefact."""
