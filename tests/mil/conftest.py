import pytest

from splitter.mil.coreml_tools import ct, quiet_and_quick

from .harness import mb, types


@pytest.fixture(scope="session")
def flexible_package(tmp_path_factory):
    """One whose input has an open axis."""
    symbol = ct.converters.mil.mil.get_new_symbol()

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, symbol), dtype=types.fp16)], opset_version=ct.target.iOS17)
    def program(x):
        return mb.relu(x=x)

    with quiet_and_quick():
        model = ct.convert(
            program,
            convert_to="mlprogram",
            inputs=[ct.TensorType("x", (1, ct.RangeDim(1, 64)))],
            minimum_deployment_target=ct.target.iOS17,
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        )
    path = tmp_path_factory.mktemp("flexible") / "open.mlpackage"
    model.save(str(path))
    return path
