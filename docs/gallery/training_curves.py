"""
Training curves
===============

Five optimizers train the same network on the digits, from the same initial weights. ``fastopt compare`` draws
the same curves on the command line.
"""

import fastopt
from fastopt.nn.data import load_digits, train_test_split
from fastopt.nn.metrics import confusion_matrix
from fastopt.plots import plot_comparison, plot_confusion_matrix, plot_history

X_train, X_test, y_train, y_test = train_test_split(*load_digits())
OPTIMIZERS = {
    "SGD": lambda params: fastopt.SGD(params, lr=0.1),
    "momentum": lambda params: fastopt.SGD(params, lr=0.05, momentum=0.9),
    "AdaGrad": lambda params: fastopt.Adagrad(params, lr=0.03),
    "RMSprop": lambda params: fastopt.RMSprop(params, lr=0.002),
    "Adam": lambda params: fastopt.Adam(params, lr=0.003),
}

histories = {}
for name, make in OPTIMIZERS.items():
    net = fastopt.MLP([64, 64, 10], seed=0)
    trainer = fastopt.Trainer(net, make(net.params))
    histories[name] = trainer.fit(X_train, y_train, epochs=20, verbose=0, seed=0)
    print(f"{name:9} test accuracy {(net.predict(X_test) == y_test).mean():.3f}")

plot_comparison(histories, title="Digits, 64-64-10, batches of 32")

# %%
# The curves of a single run with validation data show when a network begins to overfit. Dropout and
# weight decay keep the validation loss from rising.

net = fastopt.MLP([64, 128, 10], dropout=0.3, seed=0)
trainer = fastopt.Trainer(net, fastopt.AdamW(net.params, lr=0.003, weight_decay=0.05))
history = trainer.fit(X_train, y_train, epochs=30, validation_split=0.2, verbose=0, seed=0)
plot_history(history, title="Digits, AdamW with dropout")

# %%
# The confusion matrix shows which digits the network confuses with each other.

matrix = confusion_matrix(y_test, net.predict(X_test))
plot_confusion_matrix(matrix, range(10), title="Digits, AdamW with dropout: test data")
