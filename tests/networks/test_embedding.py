import pytest

from diffusion_distillation.networks.embedding import check_logsnr_input


def test_an_unknown_input_type_is_refused():
    with pytest.raises(ValueError, match="Unknown logsnr_input_type 'cos'; choose one of"):
        check_logsnr_input("cos", 1000.0, (-10.0, 10.0), None)
