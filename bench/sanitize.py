"""A small round through the CUDA kernels, for compute-sanitizer: every format, aligned and not, few rows and many."""

import sys

import torch

from samplers.ops import masked_softmax

WANT = ("confidence", "margin", "entropy", "lse", "given")


def main():
    if not torch.cuda.is_available():
        sys.exit("bench/sanitize.py needs a GPU")
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for rows, vocab in ((3, 5003), (600, 2049), (2, 131), (300, 4096)):
            logits = torch.randn(rows, vocab, device="cuda").mul(4).to(dtype)
            common = {
                "uniform": torch.rand(rows, dtype=torch.float64, device="cuda"),
                "given": torch.randint(vocab, (rows,), device="cuda"),
                "forbid": torch.tensor([vocab - 1, 3], device="cuda"),
                "want": WANT,
            }
            for temperature in (0.0, 0.7, 1.0):
                masked_softmax(logits, temperature=temperature, **common)
            masked_softmax(logits, temperature=0.7, guidance=logits.flip(1).contiguous(), cfg_scale=1.0, **common)
            masked_softmax(logits, temperature=0.7, top_k=20, top_p=0.9, **common)
            masked_softmax(logits, want=())
        index = torch.tensor([1, -1, 99], device="cuda")  # out of range: told by the status, never read
        assert masked_softmax(torch.randn(2, 1500, device="cuda").to(dtype), index).status.tolist() == [0, 3, 3]
    torch.cuda.synchronize()
    print("done")


if __name__ == "__main__":
    main()
