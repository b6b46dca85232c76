"""
Learning rate finder
====================

A range test trains a copy of the network for some steps and increases the learning rate at each step. The
suggestion is the learning rate at which the loss has fallen by two thirds of its total decrease.
"""

import fastopt
from fastopt.nn.data import load_digits, train_test_split

X_train, X_test, y_train, y_test = train_test_split(*load_digits())
net = fastopt.MLP([64, 64, 10], seed=0)
opt = fastopt.SGD(net.params, momentum=0.9, lr=1e-3)

found = fastopt.lr_find(net, opt, X_train, y_train, seed=0)
print(found)
found.plot(title="Range test: digits, SGD with momentum")

# %%
# Train with the suggestion, with a tenth of it and with ten times the suggestion, from the same initial
# weights.

for factor in (0.1, 1.0, 10.0):
    net = fastopt.MLP([64, 64, 10], seed=0)
    opt = fastopt.SGD(net.params, momentum=0.9, lr=factor * found.suggestion)
    fastopt.Trainer(net, opt).fit(X_train, y_train, epochs=5, verbose=0, seed=0)
    accuracy = (net.predict(X_test) == y_test).mean()
    print(f"Learning rate {opt.groups[0]['lr']:.2g}: test accuracy {accuracy:.3f} after 5 epochs")
