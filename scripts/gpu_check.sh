#!/usr/bin/env bash
# Run every check of CUDA that needs a GPU, on a machine that has one but no network:
#
#   scripts/gpu_check.sh pack [FOLDER]              on a machine with a network: packs into FOLDER what the other one needs
#   scripts/gpu_check.sh RESULTS [FOLDER [PART...]] on the other: builds, tests, measures; prints tables at the end, JSON in RESULTS
#
# FOLDER is build/gpu by default; pack it again when native/patches changes. The parts are build, test, sanitize, kernels,
# llama-3-8b and llama-2-7b; all of them run by default. `build` must have run once before others are named:
#   scripts/gpu_check.sh results build/gpu test kernels
# Put a pretrained model into FOLDER as model.gguf, and `test` calibrates on the GPU and compares that model's logits.
# The other machine needs nvcc, CMake, ninja, a C++ compiler and Python with numpy, as in PyTorch's images. It should take ten
# minutes on 16 cores. Exit code 0 where every test passed (measurements do not count), 1 where one failed, 2 for bad input.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# -lt 1 ] || [[ $1 == -* ]]; then
    sed -n '2,12s/^# \{0,1\}//p' scripts/gpu_check.sh
    [[ ${1:-} == -h || ${1:-} == --help ]] && exit 0
    exit 2
fi

folder=${2:-build/gpu}

if [ "$1" = pack ]; then
    # only what is built of the patched tree, which is smaller than upstream's whole archive
    tree=$(mktemp -d)
    trap 'rm -rf "$tree"' EXIT
    cmake -S native -B "$tree/build" > "$tree/log" || { cat "$tree/log"; exit 1; }
    mkdir -p "$folder/wheels"
    name=$(basename "$tree"/build/upstream-*)
    tar -C "$tree/build" -cJf "$folder/$name.tar.xz" \
        "$name"/{.minicache-patches,CMakeLists.txt,LICENSE,cmake,ggml,include,src,vendor}
    python3 - "$folder/wheels" <<'PYTHON'
import subprocess, sys

sys.path.insert(0, "scripts")
import bootstrap

folder = sys.argv[1]
subprocess.run(["cp", str(bootstrap.llama_cpp_python()), folder], check=True)
download = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", folder, "--only-binary", ":all:"]
subprocess.run(
    [*download, "--no-deps", "gguf>=0.17", "diskcache", "jinja2", "markupsafe", "typing-extensions", "tqdm", "pyyaml",
     "requests", "urllib3", "idna", "certifi", "charset-normalizer", "pycparser"], check=True)  # fmt: skip
for version in ("3.10", "3.11", "3.12", "3.13"):
    for package in ("cffi", "markupsafe", "pyyaml", "charset-normalizer"):
        subprocess.run([*download, "--no-deps", "--python-version", version, package], check=True)
PYTHON
    du -sh "$folder"
    exit 0
fi

results=$1
mkdir -p "$results"
results=$(cd "$results" && pwd)
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
build=$folder/build
bin=$build/bin
failed=()
parts=("${@:3}")
all_parts=(build test sanitize kernels llama-3-8b llama-2-7b)
[ ${#parts[@]} -gt 0 ] || parts=("${all_parts[@]}")
for part in "${parts[@]}"; do
    [[ " ${all_parts[*]} " == *" $part "* ]] || { echo "there is no part $part" >&2; exit 2; }
done

wanted() { [[ " ${parts[*]} " == *" $1 "* ]]; }

section() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }

# its output in RESULTS too; after a failure the rest is run nevertheless
step() {
    local name=$1
    shift
    section "$name"
    if ! "$@" 2>&1 | tee "$results/${name// /-}.txt" | tail -n "${LINES_SHOWN:-15}"; then
        failed+=("$name")
    fi
}

build_all() {
    local archive architecture options toolkit
    archive=$(ls "$folder"/upstream-*.tar.xz) || { echo "$folder is not packed: scripts/gpu_check.sh pack $folder" >&2; exit 2; }
    architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)
    options=$(python3 scripts/cuda_toolkit.py "$folder/headers") || exit 1
    mapfile -t toolkit <<< "$options"
    mkdir -p "$build"
    tar -C "$build" -xJf "$archive"
    # compile for the GPU of this machine only, and flash attention only for the caches that are compared with
    if ! {
        cmake -S native -B "$build" -G Ninja "${toolkit[@]}" -DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES="$architecture-real" \
            -DGGML_CUDA_FA_QUANTS="f16-f16;q8_0-q8_0;q4_0-q4_0" -DMINICACHE_TESTS=ON &&
            cmake --build "$build" --parallel "$(nproc)" &&
            cmake --build "$build" --target minicache-bench-kernels
    } > "$results/build.txt" 2>&1; then
        tail -30 "$results/build.txt"
        exit 1
    fi
    python3 -m pip install --quiet --no-index --no-deps --find-links "$folder/wheels" --target "$folder/site" --upgrade \
        llama-cpp-python gguf diskcache jinja2 markupsafe typing-extensions tqdm pyyaml requests urllib3 idna certifi \
        charset-normalizer cffi pycparser
}

# a single case of an op for each tool, as both make kernels a hundred times slower
sanitize() {
    timeout 120 compute-sanitizer --tool "$1" --error-exitcode 1 "$bin/minicache-test" -d CUDA0 -n 3 -o "$2"
}

# all at the same time: most of it is work for the CPU, loading ggml-cuda's kernels
sanitize_all() {
    local ops=(INDEX MERGE RETAIN ENCODE 'ATTN(type_k=q4_0,type_v=q4_0' 'ATTN_CODE(units_k=1.0.1.1.1.0.1')
    local tool op name status=0
    local -A running
    for tool in memcheck racecheck; do
        for op in "${ops[@]}"; do
            name="$tool of ${op%%(*}"
            sanitize "$tool" "$op" > "$results/${name// /-}.txt" 2>&1 &
            running[$name]=$!
        done
    done
    for name in "${!running[@]}"; do
        if wait "${running[$name]}"; then
            echo "$name: no error"
        else
            status=1
            echo "$name: FAILED"
            tail -n 5 "$results/${name// /-}.txt"
        fi
    done
    return $status
}

measure_model() {
    local shape=$1
    local model=$folder/$shape.gguf
    # long contexts only for few KV heads: with as many as query heads they take 16 GiB in f16
    local contexts=(--ctx 4096)
    [ "$shape" = llama-3-8b ] && contexts+=(--ctx 32768)
    [ -f "$model" ] || LINES_SHOWN=1 step "random $shape" python3 scripts/random_model.py "$shape" -o "$model"
    local plan=$folder/$shape-8.plan.gguf
    [ -f "$plan" ] || LINES_SHOWN=1 step "random plan of $shape" python3 scripts/random_plan.py "$model" --ratio 8 -o "$plan"
    local caches=(--config f16 --config q4_0 --config slerp:type=q4_0 --config "$plan")
    LINES_SHOWN=40 step "decode of $shape" decode "$model" "$results/decode-$shape.json" "${contexts[@]}" "${caches[@]}"
    LINES_SHOWN=6 step "throughput of $shape at 4 GiB" python3 scripts/bench_throughput.py "$model" --budget 4G --requests 128 \
        "${caches[@]}" --json "$results/throughput-$shape.json"
}

decode() {
    python3 -m minicache_cpp bench "$1" --device cuda "${@:3}" --reps 3 --json > "$2" &&
        python3 -c 'import json, sys; from minicache_cpp.bench import table; print(table(json.load(open(sys.argv[1]))))' "$2"
}

nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv | tee "$results/device.txt"
export MINICACHE_LIB_PATH=$bin PYTHONPATH=python:scripts:$folder/site${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=1

if wanted build; then
    section 'build'
    build_all
fi
if wanted test; then
    LINES_SHOWN=3 step 'native tests on the CPU' "$bin/minicache-test" -o 'ATTN(type_k=f16'
    step 'native tests on the GPU' "$bin/minicache-test" -d CUDA0
    model=$folder/model.gguf
    plan=$folder/8.plan.gguf
    if [ -e "$model" ]; then
        LINES_SHOWN=1 step 'a calibration on the GPU' python3 -m minicache_cpp calibrate "$model" --ratio 8 --gpu-layers -1 -o "$plan"
    else
        echo "no $model: random weights in smollm2-135m's shape and a random plan, and no calibration"
        model=$folder/random.gguf
        python3 scripts/random_model.py smollm2-135m -o "$model"
        python3 scripts/random_plan.py "$model" --ratio 8 -o "$plan"
    fi
    LINES_SHOWN=8 step 'logits' python3 scripts/compare_devices.py "$model" --config f16 --config q4_0 --config slerp:type=f16 \
        --config slerp:type=q8_0 --config slerp:type=q4_0 --config "$plan" --json "$results/logits.json"
    LINES_SHOWN=8 step 'logits with half of the layers on the GPU' python3 scripts/compare_devices.py "$model" --gpu-layers 6 \
        --config f16 --config slerp:type=q4_0 --config "$plan"
fi
if wanted sanitize; then
    if command -v compute-sanitizer > /dev/null; then
        LINES_SHOWN=60 step 'memory and races' sanitize_all
    else
        echo 'compute-sanitizer is not there: memcheck and racecheck are left out'
        failed+=('compute-sanitizer')
    fi
fi
if wanted kernels; then
    LINES_SHOWN=200 step 'kernels' python3 scripts/bench_kernels.py --device CUDA0 --bin "$bin" --json "$results/kernels.json"
fi
for shape in llama-3-8b llama-2-7b; do
    if wanted "$shape"; then
        measure_model "$shape"
    fi
done

section 'done'
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}"
    exit 1
fi
echo 'all tests passed'
