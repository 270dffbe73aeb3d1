// One model in llama.cpp, measured once for each line that comes in: see quantized.py, which runs this.
import {createInterface} from "node:readline";
import {readFileSync} from "node:fs";
import {getLlama} from "node-llama-cpp";

const [path, threads, promptTokens, tokens] = [process.argv[2], ...process.argv.slice(3).map(Number)];
const started = performance.now();
const llama = await getLlama({gpu: false, build: "never", logLevel: "error"});
const model = await llama.loadModel({modelPath: path});
const context = await model.createContext({contextSize: 1024, threads, batchSize: 512});
const sequence = context.getSequence();
const load = (performance.now() - started) / 1000;
const prompt = Array.from({length: promptTokens + 1}, (_, i) => 100 + (i % 100));
console.log("ready");

for await (const _ of createInterface({input: process.stdin})) {
    await sequence.clearHistory();
    let start = performance.now();
    await sequence.evaluateWithoutGeneratingNewTokens(prompt.slice(0, promptTokens));
    const read = (performance.now() - start) / 1000;
    let count = -1; // the first of them stands at the start of the clock
    for await (const _token of sequence.evaluate(prompt.slice(promptTokens), {temperature: 0, yieldEogToken: true})) {
        if (count < 0) start = performance.now();
        if (++count === tokens) break;
    }
    const written = (performance.now() - start) / 1000;
    const peak = Number(/VmHWM:\s+(\d+)/.exec(readFileSync("/proc/self/status", "utf8"))[1]) * 1024;
    console.log(JSON.stringify({load, prompt: promptTokens / read, alone: count / written, peak}));
}
process.exit(0);
