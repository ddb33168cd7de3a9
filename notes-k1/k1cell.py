SRC = '''
figure, ax = plt.subplots(figsize=(6.4, 4.6))
# the mean of k1 is KL(p || q): each half is held still in turn
q, numbers_of = log_q.exp(), log_p - log_q
through_samples = slope(lambda z: z.softmax(0) @ numbers_of)
through_number = slope(lambda z: p @ (z.log_softmax(0) - log_q))
torch.testing.assert_close(through_samples + through_number, of_pq)
parts = [f"{v.abs().max():.2f}" for v in (through_samples, through_number)]
boxes = {
    "policy": (0, 3, "the weights of the policy p"),
    "samples": (-1.5, 1.5, "which tokens a\\nare sampled"),
    "number": (1.5, 1.5, "the number k1 of each:\\nlog p(a) − log q(a)"),
    "mean": (0, 0, "the mean of k1 = KL(p‖q)"),
}
arrows = {
    ("policy", "samples"): f"slope {parts[0]}",
    ("policy", "number"): f"slope {parts[1]}",
    ("samples", "mean"): "",
    ("number", "mean"): "",
}
plotting.plot_diagram(boxes, arrows, ax, bold=("samples",))
ax.set(xlim=(-3, 3), ylim=(-0.6, 3.6))
ax.text(-1.2, 2.4, "as a reward\\nit follows this", ha="right", va="center")
ax.text(1.2, 2.4, "in a loss\\nonly this", ha="left", va="center")
plotting.show(
    figure,
    alt="A diagram. From the weights of the policy two arrows lead down. One "
    "goes to the tokens that are sampled, largest slope 0.51: as a "
    "reward, k1 follows this arrow. The other goes to the number k1 of each "
    "token, slope 0.00: in a loss it follows only this one. From both an "
    "arrow leads to the mean of k1, which is the KL.",
)
'''
