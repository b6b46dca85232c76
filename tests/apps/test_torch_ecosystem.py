"""fastopt.torch in libraries that train with torch optimizers, against the classes of ``torch.optim``."""

import copy
import pickle

import pytest
from torch_optimizers import assert_close, torch

import fastopt.torch as ft

MODULES = (ft, torch.optim)
X = torch.linspace(-1.0, 1.0, 96).reshape(24, 4)
Y = X.sum(1, keepdim=True).sin()


def make_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def batches():
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=8)


def loss_of(model, x, y):
    return torch.nn.functional.mse_loss(model(x), y)


def test_accelerate():
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    models = []
    for module in MODULES:
        accelerator = accelerate.Accelerator(cpu=True)
        model = make_model()
        optimizer = module.AdamW(model.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, batches(), scheduler)
        for _ in range(2):
            for x, y in loader:
                with accelerator.accumulate(model):
                    accelerator.backward(loss_of(model, x, y))
                    accelerator.clip_grad_norm_(model.parameters(), 0.1)
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()
        copied = pickle.loads(pickle.dumps(optimizer))
        assert type(copied.optimizer) is module.AdamW
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        models.append(list(model.parameters()))
    assert_close(*models)


@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")

    class Module(lightning.LightningModule):
        def __init__(self, make_optimizer):
            super().__init__()
            self.model, self.make_optimizer = make_model(), make_optimizer

        def training_step(self, batch, index):
            return loss_of(self.model, *batch)

        def configure_optimizers(self):
            optimizer = self.make_optimizer(self.parameters(), lr=0.01)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    models = []
    for i, module in enumerate(MODULES):
        network = Module(module.AdamW)
        options = {
            "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
            "enable_model_summary": False, "gradient_clip_val": 0.1, "accumulate_grad_batches": 2,
            "default_root_dir": tmp_path,
        }
        trainer = lightning.Trainer(max_epochs=2, enable_checkpointing=False, **options)
        trainer.fit(network, batches())
        path = tmp_path / f"{i}.ckpt"
        trainer.save_checkpoint(path)
        trainer = lightning.Trainer(max_epochs=4, enable_checkpointing=False, **options)
        trainer.fit(network, batches(), ckpt_path=path)
        models.append(list(network.parameters()))
    assert_close(*models)


def test_skorch():
    skorch = pytest.importorskip("skorch", reason="skorch is not installed")
    models = []
    for module in MODULES:
        net = skorch.NeuralNetRegressor(
            make_model(), optimizer=module.SGD, lr=0.01, optimizer__momentum=0.9, max_epochs=3,
            train_split=None, verbose=0, batch_size=8,
        )
        net.fit(X.numpy(), Y.numpy())
        net = pickle.loads(pickle.dumps(net))
        net.set_params(lr=0.001)
        net.partial_fit(X.numpy(), Y.numpy())
        models.append(list(net.module_.parameters()))
    assert_close(*models)


def test_timm():
    timm = pytest.importorskip("timm.optim._optim_factory", reason="timm is not installed")
    models = []
    for module in MODULES:
        timm.default_registry.register(timm.OptimInfo("test", module.AdamW, has_betas=True))
        model = make_model()
        optimizer = timm.create_optimizer_v2(
            model, "test", lr=0.01, weight_decay=0.1, layer_decay=None, betas=(0.8, 0.9)
        )
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.1]
        for x, y in batches():
            optimizer.step(lambda x=x, y=y, model=model: loss_of(model, x, y).backward())
        models.append(list(model.parameters()))
    assert_close(*models)


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_trainer(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = make_model()

        def forward(self, x, labels):
            return {"loss": loss_of(self.layers, x, labels)}

    data = [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)]
    models = []
    for module in MODULES:
        model = Model()
        optimizer = module.AdamW(model.parameters(), lr=0.01)
        scheduler = transformers.get_linear_schedule_with_warmup(optimizer, 2, 9)
        arguments = {
            "per_device_train_batch_size": 8, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
            "output_dir": str(tmp_path / module.__name__), "save_steps": 4, "logging_steps": 100,
        }
        for epochs, path in ((2, None), (3, True)):
            trainer = transformers.Trainer(
                model, transformers.TrainingArguments(num_train_epochs=epochs, **arguments),
                train_dataset=data, optimizers=(optimizer, scheduler),
            )
            trainer.train(resume_from_checkpoint=path)
        models.append(list(model.parameters()))
    assert_close(*models)
