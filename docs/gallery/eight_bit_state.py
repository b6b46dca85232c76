"""
8-bit optimizer state
=====================

AdamW stores two moving averages per parameter. In float32 they need twice the memory of the parameters. With
``state_dtype`` they are stored in bfloat16 or in 8 bits; the loss hardly changes.
"""

import matplotlib.pyplot as plt

import fastopt
from fastopt.nn.data import load_digits, train_test_split

X_train, X_test, y_train, y_test = train_test_split(*load_digits())
figure, (curves, bars) = plt.subplots(1, 2, figsize=(8.6, 3.8), width_ratios=(3, 2))
for state_dtype, style in (("float32", "-"), ("bfloat16", "--"), ("int8", ":")):
    net = fastopt.MLP([64, 512, 256, 10], seed=0)
    opt = fastopt.AdamW(net.params, lr=1e-3, state_dtype=state_dtype)
    history = fastopt.Trainer(net, opt).fit(X_train, y_train, epochs=12, verbose=0, seed=0)
    accuracy, loss = (net.predict(X_test) == y_test).mean(), history.history["loss"]
    n_parameters = sum(array.size for layer in net.params for array in layer)
    size = opt.state_nbytes / n_parameters
    print(f"{state_dtype:9} {size:.2f} bytes of state per parameter, ", end="")
    print(f"loss {loss[-1]:.4f}, test accuracy {accuracy:.3f}")
    curves.semilogy(range(1, 13), loss, style, label=state_dtype)
    bars.bar(state_dtype, size, width=0.6)
curves.set(xlabel="Epoch", ylabel="Training loss", title="Digits, 64-512-256-10, AdamW")
bars.set(ylabel="Bytes of state per parameter", title="Memory")
figure.legend(loc="outside lower center", ncols=3)
plt.show()

# %%
# 8-bit values are stored in blocks, each with a scale, and are rounded stochastically: a value between two
# codes is rounded up or down at random, so that small changes are not lost on average. The result is
# bit-for-bit reproducible for a given ``seed``. See :doc:`/number-formats`.
