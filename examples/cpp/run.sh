#!/bin/sh
# A Generator in C++, from its schedules to the library: propose, rank, build the winner in.
#
#     examples/cpp/run.sh [FOLDER]          with PYTHON=.venv/bin/python unless told otherwise
#
# Needs g++ alone: headers, libraries and autoschedulers are those that `pip install halide` brought.
set -e
here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../.." && pwd)
python=${PYTHON:-$project/.venv/bin/python}
out=${1:-$project/runs/cpp}
halide=$("$python" -c 'import halide; print(halide.install_dir())')
mkdir -p "$out/samples"
cd "$out"

build="g++ -std=c++17 -I$halide/include $here/blur_generator.cpp -L$halide/lib64 -lHalide -Wl,-rpath,$halide/lib64"
$build -o blur_generator

# Sixteen schedules: Adams2019 with dropout, each with another seed.
for seed in $(seq 16); do
    mkdir -p "samples/$seed"
    ./blur_generator -g blur -f blur -o "samples/$seed" -e featurization,schedule -p "$halide/lib64/libautoschedule_adams2019.so" \
        target=host autoscheduler=Adams2019 autoscheduler.parallelism="$(nproc)" autoscheduler.random_dropout=1 \
        autoscheduler.random_dropout_seed="$seed" autoscheduler.beam_size=1
done

"$python" "$project/rank_schedules.py" samples --output ranked.csv
winner=$("$python" -c 'import pandas; print(pandas.read_csv("ranked.csv").file[0])')
cp "samples/$(dirname "$winner")/blur.schedule.h" best.schedule.h

$build -DSCHEDULED -I. -o blur_scheduled
./blur_scheduled -g blur -f blur -o . -e static_library,c_header target=host
g++ -std=c++17 -O2 -I. -I"$halide/include" -I"$halide/share/tools" "$here/main.cpp" blur.a -o main -lpthread -ldl
./main
