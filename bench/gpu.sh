#!/bin/sh
# Checks and times everything on a machine with an NVIDIA GPU, in one call and with nothing but the
# one-file gdrc (cmake --workflow --preset static) and this source tree:
#
#   bench/gpu.sh GDRC [OUT]
#
# OUT (bench/out by default) receives verify.txt, one bench_NAME.json a case, and load.txt: the time
# from spec text to a loaded kernel, first and from the cache. Exit status 1 if a check failed.
set -u

[ $# -ge 1 ] || { echo "usage: bench/gpu.sh GDRC [OUT]" >&2; exit 2; }
gdrc=$(realpath "$1")
cd "$(dirname "$0")/.." || exit 2
out=${2:-bench/out}
mkdir -p "$out" || exit 3
GDR_CACHE_DIR=$(mktemp -d)
export GDR_CACHE_DIR
trap 'rm -rf "$GDR_CACHE_DIR"' EXIT
status=0

{
    "$gdrc" --version
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
} >"$out/machine.txt"
cat "$out/machine.txt"

echo "== load times"
input=tests/data/minilm_gdn2.safetensors
for pass in first cached; do
    start=$(date +%s%N)
    "$gdrc" run specs/gdn2.gdr --in $input --out "$out/real_chunk.safetensors" --device cuda \
        --algo chunk || status=1
    echo "$pass run of gdn2, the whole command: $((($(date +%s%N) - start) / 1000000)) ms"
done >"$out/load.txt"
cat "$out/load.txt"

echo "== real input, chunk and recurrent on the GPU against the reference"
"$gdrc" run specs/gdn2.gdr --in $input --out "$out/real_reference.safetensors" --algo reference ||
    status=1
"$gdrc" run specs/gdn2.gdr --in $input --out "$out/real_recurrent.safetensors" --device cuda \
    --algo recurrent || status=1
for algo in chunk recurrent; do
    python3 scripts/compare.py "$out/real_$algo.safetensors" "$out/real_reference.safetensors" ||
        status=1
done
rm -f "$out"/real_*.safetensors

echo "== bench"
# bench NAME SPEC ARGUMENT...
bench() {
    name=$1
    spec=$2
    shift 2
    "$gdrc" bench "specs/$spec.gdr" --device cuda --dtype bf16 --json "$out/bench_$name.json" "$@" ||
        status=1
}
bench gdn2 gdn2 --shape 1,8192,96 --shape 2,8192,16 --shape 8,4096,16 --shape 1,32768,8
bench kda_raw kda_raw --shape 1,8192,96 --shape 8,4096,16 --shape 1,32768,8
bench gated_deltanet gated_deltanet --shape 1,8192,64,16
bench gdn2_step gdn2 --algo recurrent --shape 256,1,32 --shape 32,1,32
bench kda_step kda --algo recurrent --shape 256,1,32 --shape 32,1,32
bench gated_deltanet_step gated_deltanet --algo recurrent --shape 256,1,32 --shape 32,1,32

# Steps with states in two bytes, in the other layout, from a pool, and of several tokens at once.
bench gdn2_step_bf16 gdn2 --algo recurrent --state-type bf16 --shape 256,1,32
bench gdn2_step_vk gdn2 --algo recurrent --state-type bf16 --state-layout vk --shape 256,1,32
bench gdn2_step_4 gdn2 --step --shape 256,1,32 --shape 256,4,32
bench gdn2_step_4_bf16 gdn2 --step --state-type bf16 --shape 256,1,32 --shape 256,4,32

# Training: the forward pass, which saves states or all, the backward pass, both, and their memory.
bench gdn2_grad gdn2 --grad --shape 1,8192,96 --shape 8,4096,16 --sets 2
bench gated_deltanet_grad gated_deltanet --grad --shape 1,32768,32,16 --sets 2
bench kda_grad kda --grad --shape 1,8192,96 --shape 8,4096,16 --sets 2
bench gdn2_grad_all gdn2 --grad --save all --shape 1,8192,96 --shape 8,4096,16 --sets 2
bench gated_deltanet_grad_all gated_deltanet --grad --save all --shape 1,32768,32,16 --sets 2
bench kda_grad_all kda --grad --save all --shape 1,8192,96 --shape 8,4096,16 --sets 2

echo "== verify"
# One process a spec, type and pass, as many at once as there are cores; the output in the order of the
# specs, forward passes first.
mkdir -p "$out/verify"
for dtype in bf16 f32; do
    for spec in specs/*.gdr; do
        echo "forward $dtype $spec"
        echo "grad $dtype $spec --grad"
    done
    for spec in gdn2 gated_oja mamba3_siso; do
        echo "states $dtype specs/$spec.gdr --state-type bf16 --state-layout vk"
    done
done | xargs -P "$(nproc)" -L 1 sh -c '
    out=$1 pass=$2 dtype=$3 spec=$4
    shift 4
    "$0" verify "$spec" --device cuda --dtype "$dtype" "$@" \
        >"$out/verify/${pass}_${dtype}_$(basename "$spec" .gdr).txt" 2>&1
' "$gdrc" "$out" || status=1
cat "$out"/verify/*.txt >"$out/verify.txt"
rm -r "$out/verify"
grep -E "failed$|: [0-9]+ checks" "$out/verify.txt"

exit $status
