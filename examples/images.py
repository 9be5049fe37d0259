"""Pictures from Gaussian noise: handwritten digits, by three solvers, and what each step does."""

import samplers

problem = samplers.problems.create("digits")
denoiser = problem.denoiser("gaussian")  # the exact denoiser; samplers.models.zoo.load("digits-gauss") is a trained one


def side_by_side(rows) -> str:
    """Pictures as text, from left to right."""
    return "\n".join("   ".join(lines) for lines in zip(*(problem.render(row).splitlines() for row in rows)))


def main() -> None:
    out = samplers.sample(denoiser, "dpmpp_2m", batch=4, steps=12, seed=2)
    print(side_by_side(out.x))
    print(f"\nshape {tuple(out.x.shape)}, {out.nfe} forward passes, {out.seconds.total:.3f} s\n")

    print("how one picture comes to be, by dpmpp_2m in 6 steps:")
    states = list(samplers.stream(denoiser, "dpmpp_2m", steps=6, seed=2))
    print(side_by_side([state.x[0] for state in states[1::2]]))

    for name in ("ddim", "dpm_solver", "dpmpp_2m"):
        for steps in (6, 24):
            score = problem.score(samplers.sample(denoiser, name, batch=200, steps=steps))
            print(f"{name:10} {steps:2} steps   {score.primary} {score[score.primary].value:.3f}")


if __name__ == "__main__":
    main()
