"""A simulated ComfyUI, HTTP and socket, against the recorded shapes (docs/telegram-comfyui.md#comfyui)."""

import asyncio
import json
import struct

import aiohttp
import pytest
from gpugate_demo.comfyui import EmptyJob, FailJob, HangJob, LoseJob, SimulatedComfyUI, VanishJob
from gpugate_demo.faults import Answer
from gpugate_demo.picture import SIGNATURE, draw

SMALL = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 48, "batch_size": 1, "color": 7}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "gpugate/t1"}},
}


def painting(seed=42, steps=3, text="a castle"):
    return {
        "4": {
            "class_type": "CheckpointLoaderSimple",
            "inputs": {"ckpt_name": "v1-5-pruned-emaonly.safetensors"},
        },
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 64, "batch_size": 1}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": text, "clip": ["4", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["4", 1]}},
        "3": {
            "class_type": "KSampler",
            "inputs": {
                "seed": seed,
                "steps": steps,
                "cfg": 7.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
                "model": ["4", 0],
                "positive": ["6", 0],
                "negative": ["7", 0],
                "latent_image": ["5", 0],
            },
        },
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "sd"}},
    }


async def submit(comfy, graph=None, **more):
    got = await comfy("POST", "/prompt", {"prompt": graph or SMALL, **more})
    assert 200 == got.status, got.text
    return json.loads(got.body)


async def finished(comfy, job_id):
    """Its history, once there is one."""
    async with asyncio.timeout(15):
        while not (found := json.loads((await comfy("GET", f"/history/{job_id}")).body)):
            await asyncio.sleep(0.005)
    return found[job_id]


async def done(comfy, graph=None, **more):
    return await finished(comfy, (await submit(comfy, graph, **more))["prompt_id"])


def told(message):
    """One event in short."""
    data = message["data"]
    if message["type"] == "progress_state":
        return "state " + " ".join(f"{node}:{step['state']}" for node, step in data["nodes"].items())
    if message["type"] == "status":
        return f"status {data['status']['exec_info']['queue_remaining']}"
    return f"{message['type']} {data['node']}" if "node" in data else message["type"]


class Listener:
    """One socket, read to the end of a job."""

    def __init__(self, socket):
        self.socket = socket

    async def rest(self):
        events, binaries = [], []
        async with asyncio.timeout(15):
            while not events or events[-1] != "executing None":
                message = await self.socket.receive()
                if message.type is aiohttp.WSMsgType.BINARY:
                    binaries.append(message.data)
                else:
                    events.append(told(json.loads(message.data)))
        return events, binaries


@pytest.fixture
async def listener(session, comfyui):
    async with session.ws_connect(f"{comfyui.url}/ws?clientId=me") as socket:
        hello = await socket.receive_json()
        assert {"status": {"exec_info": {"queue_remaining": 0}}, "sid": "me"} == hello["data"]
        yield Listener(socket)


class TestPrompt:
    async def test_accepted(self, comfy):
        first, second = await submit(comfy), await submit(comfy, prompt_id="mine")

        assert (0, {}) == (first["number"], first["node_errors"])
        assert ("mine", 1) == (second["prompt_id"], second["number"])

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"nope",
            b'{"prompt": "a castle"}',
            b'{"prompt":{"last_node_id":9}}',
            b'{"prompt":{},"number":"x"}',
        ],
    )
    async def test_what_it_falls_over(self, comfy, body):
        """500 in plain text, as recorded."""
        got = await comfy("POST", "/prompt", data=body)

        assert (500, "text/plain; charset=utf-8") == (got.status, got.kind)
        assert "500 Internal Server Error\n\nServer got itself in trouble" == got.text

    async def test_refused(self, comfy):
        got = await comfy("POST", "/prompt", {"workflow": SMALL})
        error = {"type": "no_prompt", "message": "No prompt provided", "details": "No prompt provided"}

        assert (400, {"error": {**error, "extra_info": {}}, "node_errors": {}}) == (
            got.status,
            json.loads(got.body),
        )
        assert 400 == (await comfy("POST", "/prompt", {"prompt": {"1": SMALL["1"]}})).status

    async def test_partly_good(self, comfy):
        """200, with the errors of the other part."""
        bad = {"class_type": "SaveImage", "inputs": {"images": ["777", 0], "filename_prefix": "y"}}
        answer = await submit(comfy, {**SMALL, "21": bad})

        assert ["21"] == list(answer["node_errors"])
        assert ["9"] == list((await finished(comfy, answer["prompt_id"]))["outputs"])

    async def test_an_empty_list(self, comfy):
        """Has no prompt, and is no crash."""
        got = await comfy("POST", "/prompt", data=b"[]")

        assert (400, "no_prompt") == (got.status, json.loads(got.body)["error"]["type"])


class TestMethods:
    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [
            ("PUT", "/prompt", 405),
            ("GET", "/interrupt", 405),
            ("HEAD", "/queue", 200),
            ("OPTIONS", "/prompt", 200),
            ("GET", "/embeddings", 200),
            ("GET", "/nowhere", 404),
        ],
    )
    async def test_status(self, comfy, method, path, status):
        assert status == (await comfy(method, path)).status

    @pytest.mark.parametrize(
        ("path", "body", "status"),
        [
            ("/queue", b"", 500),
            ("/queue", b"[]", 200),
            ("/history", b"", 500),
            ("/free", b"", 500),
            ("/interrupt", b"", 200),
            ("/interrupt", b"[]", 500),
            ("/interrupt", b"5", 500),
        ],
    )
    async def test_odd_bodies(self, comfy, path, body, status):
        assert status == (await comfy("POST", path, data=body)).status

    @pytest.mark.parametrize(
        ("most", "status", "found"), [("0", 200, 0), ("-1", 200, 0), ("x", 500, None), ("1", 200, 1)]
    )
    async def test_max_items(self, comfy, most, status, found):
        await done(comfy)
        got = await comfy("GET", f"/history?max_items={most}")

        assert (status, found) == (got.status, None if status == 500 else len(json.loads(got.body)))


class TestOutputs:
    async def test_their_order_is_chance(self, comfy):
        """The real one executes them out of a set."""
        second = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
        seen = [list((await done(comfy, {**SMALL, "10": second}))["outputs"]) for _ in range(12)]

        assert [["10", "9"], ["9", "10"]] == sorted({tuple(one): one for one in seen}.values())

    @pytest.mark.parametrize(
        ("kind", "inputs", "ending", "content"),
        [
            ("SaveAnimatedPNG", {"compress_level": 4}, ".png", "image/png"),
            (
                "SaveAnimatedWEBP",
                {"lossless": True, "quality": 80, "method": "default"},
                ".webp",
                "image/webp",
            ),
            ("SaveWEBM", {"codec": "vp9", "crf": 32}, ".webm", "video/webm"),
        ],
    )
    async def test_animations(self, comfy, kind, inputs, ending, content):
        """Listed among the images, with a mark."""
        inputs = {"images": ["1", 0], "filename_prefix": "a", "fps": 6.0, **inputs}
        entry = await done(comfy, {"1": SMALL["1"], "9": {"class_type": kind, "inputs": inputs}})
        shown = entry["outputs"]["9"]
        name = shown["images"][0]["filename"]

        assert ([True], f"a_00001_{ending}") == (shown["animated"], name)
        assert content == (await comfy("GET", f"/view?filename={name}")).kind

    async def test_video(self, comfy):
        video = {"class_type": "CreateVideo", "inputs": {"images": ["1", 0], "fps": 6.0}}
        inputs = {"video": ["2", 0], "filename_prefix": "v", "format": "mp4", "codec": "h264"}
        save = {"class_type": "SaveVideo", "inputs": inputs}
        shown = (await done(comfy, {"1": SMALL["1"], "2": video, "9": save}))["outputs"]["9"]

        assert ("v_00001_.mp4", [True]) == (shown["images"][0]["filename"], shown["animated"])

    async def test_text(self, comfy):
        preview = {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}

        assert {"9": {"text": ["simulated"]}} == (await done(comfy, {"1": SMALL["1"], "9": preview}))[
            "outputs"
        ]


class TestHistory:
    async def test_success(self, comfy):
        entry = await done(comfy, client_id="rec-ok")

        assert [0, SMALL, {"client_id": "rec-ok"}, ["9"]] == [
            entry["prompt"][place] for place in (0, 2, 3, 4)
        ]
        image = {"filename": "t1_00001_.png", "subfolder": "gpugate", "type": "output"}
        assert {"9": {"images": [image]}} == entry["outputs"]
        assert ("success", True) == (entry["status"]["status_str"], entry["status"]["completed"])
        assert ["execution_start", "execution_cached", "execution_success"] == [
            name for name, _ in entry["status"]["messages"]
        ]
        assert {
            "9": {"node_id": "9", "display_node": "9", "parent_node": None, "real_node_id": "9"}
        } == entry["meta"]

    async def test_unknown_pending_and_running_look_the_same(self, comfy, comfyui):
        """{} with 200; only /queue tells them apart."""
        hang = HangJob()
        comfyui.plan(hang)
        running, pending = (await submit(comfy))["prompt_id"], (await submit(comfy))["prompt_id"]
        await asyncio.sleep(0.02)

        for job_id in (running, pending, "unknown"):
            assert "{}" == (await comfy("GET", f"/history/{job_id}")).text
        queue = json.loads((await comfy("GET", "/queue")).body)
        assert [running, pending] == [queue["queue_running"][0][1], queue["queue_pending"][0][1]]
        assert {"exec_info": {"queue_remaining": 2}} == json.loads((await comfy("GET", "/prompt")).body)
        hang.until.set()
        await finished(comfy, pending)

    async def test_a_failure(self, comfy, comfyui):
        """The report has the server's paths in it, as the real one has."""
        comfyui.plan(FailJob("CUDA out of memory"))
        entry = await done(comfy)
        event, report = entry["status"]["messages"][-1]

        assert ("error", False, {}) == (
            entry["status"]["status_str"],
            entry["status"]["completed"],
            entry["outputs"],
        )
        assert ("execution_error", "CUDA out of memory") == (event, report["exception_message"])
        assert "/opt/comfyui/" in report["traceback"][0]
        assert "success" == (await done(comfy, painting()))["status"]["status_str"]

    async def test_a_broken_upload(self, comfy):
        """Not noticed before it is executed."""
        form = aiohttp.FormData()
        form.add_field("image", b"no picture", filename="in.png")
        await comfy("POST", "/upload/image", data=form)
        load = {"1": {"class_type": "LoadImage", "inputs": {"image": "in.png"}}, "9": SMALL["9"]}

        entry = await done(comfy, load)
        assert "PIL.UnidentifiedImageError" == entry["status"]["messages"][-1][1]["exception_type"]

    async def test_an_interruption(self, comfy, comfyui):
        """Its status is "error" too: only the last message's name tells."""
        comfyui.plan(HangJob())
        job_id = (await submit(comfy))["prompt_id"]
        await asyncio.sleep(0.02)
        assert (200, b"") == ((await comfy("POST", "/interrupt", {"prompt_id": "wrong"})).status, b"")
        assert comfyui.jobs.running is not None
        await comfy("POST", "/interrupt", {"prompt_id": job_id})

        entry = await finished(comfy, job_id)
        assert ("error", "execution_interrupted") == (
            entry["status"]["status_str"],
            entry["status"]["messages"][-1][0],
        )

    @pytest.mark.parametrize("old", [False, True])
    async def test_an_interrupt_with_the_id_of_another(self, comfy, comfyui, old):
        """Up to 0.3.56 it stops what runs."""
        comfyui.old = old
        comfyui.plan(HangJob())
        await submit(comfy)
        await comfyui.until(lambda: comfyui.jobs.running is not None)
        running = comfyui.jobs.running
        await comfy("POST", "/interrupt", {"prompt_id": "another"})

        assert old is running.stop.is_set()

    async def test_a_bare_interrupt_stops_sampling(self, session):
        async with SimulatedComfyUI(step_s=0.01) as slow:
            async with session.post(slow.url + "/prompt", json={"prompt": painting(steps=1000)}) as response:
                job_id = (await response.json())["prompt_id"]
            await asyncio.sleep(0.03)
            async with session.post(slow.url + "/interrupt") as response:
                assert 200 == response.status
            async with asyncio.timeout(15):
                while job_id not in slow.jobs.history:
                    await asyncio.sleep(0.005)

    async def test_lists_and_deletion(self, comfy):
        ids = [(await submit(comfy, painting(seed)))["prompt_id"] for seed in range(3)]
        await finished(comfy, ids[-1])

        assert ids[1:] == list(json.loads((await comfy("GET", "/history?max_items=2")).body))
        await comfy("POST", "/history", {"delete": ids[:1]})
        assert ids[1:] == list(json.loads((await comfy("GET", "/history")).body))

    async def test_jobs_that_go_wrong_quietly(self, comfy, comfyui):
        """Lost; successful without a picture; successful with a file that is not there."""
        comfyui.plan(LoseJob(), EmptyJob(), VanishJob())
        lost = (await submit(comfy, painting(1)))["prompt_id"]
        empty, vanished = await done(comfy, painting(2)), await done(comfy, painting(3))

        assert "{}" == (await comfy("GET", f"/history/{lost}")).text
        assert {"queue_running": [], "queue_pending": []} == json.loads((await comfy("GET", "/queue")).body)
        assert ("success", {}) == (empty["status"]["status_str"], empty["outputs"])
        image = vanished["outputs"]["9"]["images"][0]
        assert 404 == (await comfy("GET", "/view", params=image)).status

    async def test_forgotten(self, comfy, comfyui):
        """After a restart it knows nothing."""
        await done(comfy)
        comfyui.jobs.forget()

        assert "{}" == (await comfy("GET", "/history")).text


class TestQueue:
    async def test_one_at_a_time_and_in_order(self, comfy, comfyui):
        """Front jobs have negative numbers and go first."""
        hang = HangJob()
        comfyui.plan(hang)
        first = (await submit(comfy, painting(1)))["prompt_id"]
        await asyncio.sleep(0.02)
        last = await submit(comfy, painting(2))
        front = await submit(comfy, painting(3), front=True)
        assert (1, -2) == (last["number"], front["number"])
        hang.until.set()
        await finished(comfy, last["prompt_id"])

        assert [first, front["prompt_id"], last["prompt_id"]] == list(comfyui.jobs.history)

    async def test_deletion(self, comfy, comfyui):
        """Takes away what waits; what runs goes on."""
        hang = HangJob()
        comfyui.plan(hang)
        ids = [(await submit(comfy, painting(seed)))["prompt_id"] for seed in range(4)]
        await asyncio.sleep(0.02)
        await comfy("POST", "/queue", {"delete": ids[:2]})
        assert ids[2:] == [job.id for job in comfyui.jobs.pending()]
        await comfy("POST", "/queue", {"clear": True})
        assert [] == comfyui.jobs.pending()

        hang.until.set()
        assert "success" == (await finished(comfy, ids[0]))["status"]["status_str"]
        assert "{}" == (await comfy("GET", f"/history/{ids[1]}")).text


class TestCache:
    async def test_the_same_graph(self, comfy):
        """Is not run again: the same file name."""
        first, second = await done(comfy), await done(comfy)

        assert first["outputs"] == second["outputs"]
        assert ["1", "9"] == second["status"]["messages"][1][1]["nodes"]

    async def test_another_seed(self, comfy):
        """Runs from the sampler on."""
        await done(comfy, painting(1))
        second = await done(comfy, painting(2))

        assert {"4", "5", "6", "7"} == set(second["status"]["messages"][1][1]["nodes"])
        assert "sd_00002_.png" == second["outputs"]["9"]["images"][0]["filename"]

    async def test_a_deleted_file(self, comfy, comfyui):
        """Success, and nothing to fetch."""
        image = (await done(comfy))["outputs"]["9"]["images"][0]
        comfyui.shelf.remove(("output", image["subfolder"], image["filename"]))

        assert image == (await done(comfy))["outputs"]["9"]["images"][0]
        assert 404 == (await comfy("GET", "/view", params=image)).status

    async def test_free(self, comfy):
        await done(comfy)
        await comfy("POST", "/free", {"unload_models": True, "free_memory": True})

        assert "t1_00002_.png" == (await done(comfy))["outputs"]["9"]["images"][0]["filename"]


class TestView:
    async def test_a_picture(self, comfy):
        """The prompt is in its metadata, unless it is asked for without."""
        image = (await done(comfy, painting(text="a secret castle")))["outputs"]["9"]["images"][0]
        whole = await comfy("GET", "/view", params=image)
        plain = await comfy("GET", "/view", params={**image, "channel": "rgb"})
        preview = await comfy("GET", "/view", params={**image, "preview": "webp;80"})

        assert ("image/png", 'filename="sd_00001_.png"') == (whole.kind, whole.headers["Content-Disposition"])
        assert SIGNATURE + struct.pack(">I4sII", 13, b"IHDR", 128, 64) == whole.body[:24]
        assert [True, False, False] == [b"secret" in got.body for got in (whole, plain, preview)]
        assert "Etag" in whole.headers

    @pytest.mark.parametrize(
        ("params", "status"),
        [
            ({}, 404),
            ({"filename": "none.png"}, 404),
            ({"filename": "t1_00001_.png"}, 404),
            ({"filename": "../../etc/passwd"}, 400),
            ({"filename": "x", "type": "bogus"}, 400),
            ({"filename": "passwd", "subfolder": "../../../etc"}, 403),
        ],
    )
    async def test_what_is_refused(self, comfy, params, status):
        """Recorded statuses, empty bodies; a lost subfolder is a 404."""
        await done(comfy)
        got = await comfy("GET", "/view", params=params)

        assert (status, b"") == (got.status, got.body)

    async def test_previews_are_temporary_files(self, comfy):
        graph = {"1": SMALL["1"], "9": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}}
        image = (await done(comfy, graph))["outputs"]["9"]["images"][0]

        assert "temp" == image["type"]
        assert 200 == (await comfy("GET", "/view", params=image)).status

    async def test_several_pictures(self, comfy):
        many = {"1": {**SMALL["1"], "inputs": {**SMALL["1"]["inputs"], "batch_size": 3}}, "9": SMALL["9"]}

        assert 3 == len((await done(comfy, many))["outputs"]["9"]["images"])


class TestUpload:
    async def upload(self, comfy, data, **fields):
        form = aiohttp.FormData()
        form.add_field("image", data, filename="in.png")
        for name, value in fields.items():
            form.add_field(name, value)
        return json.loads((await comfy("POST", "/upload/image", data=form)).body)

    async def test_names(self, comfy):
        """The same again keeps its name, other bytes get a number, unless they overwrite."""
        assert ["in.png", "in.png", "in (1).png", "in.png"] == [
            (await self.upload(comfy, b"a"))["name"],
            (await self.upload(comfy, b"a"))["name"],
            (await self.upload(comfy, b"b"))["name"],
            (await self.upload(comfy, b"b", overwrite="true"))["name"],
        ]
        expected = {"name": "in.png", "subfolder": "gp", "type": "input"}
        assert expected == await self.upload(comfy, b"a", subfolder="gp")

    async def test_it_can_be_loaded(self, comfy):
        await self.upload(comfy, draw("x", 1, 64, 64), subfolder="gp")
        load = {"1": {"class_type": "LoadImage", "inputs": {"image": "gp/in.png"}}, "9": SMALL["9"]}

        assert "success" == (await done(comfy, load))["status"]["status_str"]

    async def test_without_an_image(self, comfy):
        assert 400 == (await comfy("POST", "/upload/image", data=b"x")).status
        assert 400 == (await comfy("POST", "/upload/image", data={"a": "b"})).status


class TestAbout:
    async def test_stats(self, comfy):
        assert "simulated" == json.loads((await comfy("GET", "/system_stats")).body)["devices"][0]["name"]

    async def test_object_info(self, comfy):
        info = json.loads((await comfy("GET", "/object_info/SaveImage")).body)["SaveImage"]

        assert (True, ["images", "filename_prefix"]) == (info["output_node"], info["input_order"]["required"])
        assert "{}" == (await comfy("GET", "/object_info/Nope")).text
        assert "KSampler" in json.loads((await comfy("GET", "/object_info")).body)

    async def test_models(self, comfy):
        assert ["v1-5-pruned-emaonly.safetensors"] == json.loads(
            (await comfy("GET", "/models/checkpoints")).body
        )

    @pytest.mark.parametrize("path", ["/", "/health", "/nope", "/queue/x", "/upload/mask", "/models/vae"])
    async def test_not_there(self, comfy, path):
        """404 without a body; neither / nor /health is there."""
        got = await comfy("GET" if "upload" not in path else "POST", path)

        assert (404, b"", "application/octet-stream") == (got.status, got.body, got.kind)

    async def test_the_other_prefix(self, comfy):
        assert (await comfy("GET", "/queue")).body == (await comfy("GET", "/api/queue")).body

    async def test_a_foreign_origin(self, comfy, comfyui):
        """Refused on loopback; its own is welcome."""
        assert 403 == (await comfy("GET", "/queue", headers={"Origin": "https://evil.example"})).status
        assert 200 == (await comfy("GET", "/queue", headers={"Origin": comfyui.url})).status

    async def test_planned_faults(self, comfy, comfyui):
        comfyui.faults.add("/system_stats", Answer(502, b"<html>", "text/html"))

        assert 502 == (await comfy("GET", "/system_stats")).status


class TestSocket:
    async def test_the_order_of_a_success(self, comfy, listener):
        """As recorded, to executing{node: null}."""
        await submit(comfy, client_id="me")
        events, _ = await listener.rest()

        assert [
            "status 1",
            "status 1",
            "execution_start",
            "execution_cached",
            "state 1:running",
            "executing 1",
            "state 1:finished",
            "state 1:finished 9:running",
            "executing 9",
            "executed 9",
            "state 1:finished 9:finished",
            "execution_success",
            "status 0",
            "executing None",
        ] == events

    async def test_the_order_of_a_failure(self, comfy, comfyui, listener):
        comfyui.plan(FailJob())
        await submit(comfy, client_id="me")
        events, _ = await listener.rest()

        assert ["execution_error", "status 0", "executing None"] == [
            event.split(" 9")[0] for event in events[-3:]
        ]

    async def test_the_history_is_late(self, session):
        """It is not there yet at execution_success, and is at executing{node: null} (facts, RACE)."""
        present = {}
        async with (
            SimulatedComfyUI(history_lag_s=0.05) as server,
            session.ws_connect(f"{server.url}/ws?clientId=me") as socket,
            session.post(server.url + "/prompt", json={"prompt": SMALL, "client_id": "me"}) as response,
        ):
            job_id = (await response.json())["prompt_id"]
            while "executing None" not in present:
                event = told(await socket.receive_json())
                present[event] = job_id in server.jobs.history

        assert (False, True) == (present["execution_success"], present["executing None"])

    async def test_progress_and_previews(self, comfy, comfyui, listener):
        """A sampler tells every step; a preview is event 1, type 2, then a PNG."""
        comfyui.jobs.desk.previews = True
        await submit(comfy, painting(steps=3), client_id="me")
        events, binaries = await listener.rest()

        assert 3 == events.count("progress 3")
        assert [struct.pack(">II", 1, 2) + SIGNATURE] * 3 == [data[:16] for data in binaries]

    async def test_previews_with_metadata(self, comfy, listener):
        """Event 4 for a client whose first message said that it can read them."""
        flags = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
        await listener.socket.send_json(flags)
        assert "feature_flags" == (await listener.socket.receive_json())["type"]
        graph = {"1": SMALL["1"], "9": {"class_type": "SaveImageWebsocket", "inputs": {"images": ["1", 0]}}}
        answer = await submit(comfy, graph, client_id="me")
        _, [data] = await listener.rest()

        event, length = struct.unpack(">II", data[:8])
        about = json.loads(data[8 : 8 + length])
        assert (4, "9", "image/png") == (event, about["node_id"], about["image_type"])
        assert SIGNATURE == data[8 + length :][:8]
        assert {} == (await finished(comfy, answer["prompt_id"]))["outputs"]

    async def test_the_job_of_another(self, comfy, listener):
        """Only the status is heard, and the progress of jobs that are nobody's."""
        await done(comfy, painting(1), client_id="other")
        await done(comfy, painting(2))
        await submit(comfy, client_id="me")
        events, _ = await listener.rest()
        before = events[: events.index("execution_start")]

        assert {"status", "state"} == {event.split()[0] for event in before}
        assert not any(event.startswith("state") for event in before[:3])

    async def test_a_socket_that_closes(self, comfy, listener):
        """Its job goes on."""
        job_id = (await submit(comfy, client_id="me"))["prompt_id"]
        await listener.socket.close()

        assert "success" == (await finished(comfy, job_id))["status"]["status_str"]

    @pytest.mark.parametrize("text", ["no json", "[]", '{"type": "feature_flags"}', "5"])
    async def test_odd_first_messages(self, comfy, listener, text):
        """Are taken no notice of."""
        await listener.socket.send_str(text)
        await submit(comfy, client_id="me")

        assert "executing None" == (await listener.rest())[0][-1]

    async def test_no_socket(self, comfy):
        assert 400 == (await comfy("GET", "/ws")).status


async def test_stopping_with_a_job_and_a_socket(session):
    """Ends at once; nothing is left."""
    async with SimulatedComfyUI(step_s=0.01) as server:
        socket = await session.ws_connect(f"{server.url}/ws?clientId=me")
        async with session.post(server.url + "/prompt", json={"prompt": painting(steps=9999)}) as response:
            assert 200 == response.status
        await asyncio.sleep(0.02)

    assert server.jobs.running is None
    await socket.close()
