// A Generator as Halide's build rules make executables of: parameters, an open type, a scalar, two outputs, and a schedule by hand.
//
//     halide=$(python -c 'import halide; print(halide.install_dir())')
//     g++ -std=c++17 -I$halide/include sharpen_generator.cpp -L$halide/lib64 -lHalide_GenGen -lHalide -Wl,-rpath,$halide/lib64 -o sharpen
//     python tune_schedule.py sharpen --params "radius=2 image.type=uint8"
#include "Halide.h"

namespace {

using namespace Halide;

class Sharpen : public Generator<Sharpen> {
public:
    GeneratorParam<int> radius{"radius", 1, 1, 8};
    GeneratorParam<int> width{"width", 1536}, height{"height", 1024};

    Input<Buffer<void, 2>> image{"image"};
    Input<float> amount{"amount", 0.5f, 0.0f, 4.0f};
    Output<Buffer<float, 2>> sharpened{"sharpened"};
    Output<Buffer<uint8_t, 2>> edges{"edges"};

    void generate() {
        inside = BoundaryConditions::repeat_edge(image);
        grey(x, y) = cast<float>(inside(x, y));
        const int r = radius, size = 2 * r + 1;
        RDom window(-r, size, "window");
        across(x, y) += grey(x + window, y);
        blurred(x, y) += across(x, y + window);
        detail(x, y) = grey(x, y) - blurred(x, y) / (size * size);
        sharpened(x, y) = grey(x, y) + amount * detail(x, y);
        edges(x, y) = cast<uint8_t>(clamp(abs(detail(x, y)) * 8, 0, 255));

        image.set_estimates({{0, width}, {0, height}});
        amount.set_estimate(0.75f);
        sharpened.set_estimates({{0, width}, {0, height}});
        edges.set_estimates({{0, width}, {0, height}});
    }

    void schedule() {
        if (using_autoscheduler()) {
            return;
        }
        const int vector = natural_vector_size<float>();
        Var yi("yi"), strip("strip");
        for (Func output : {Func(sharpened), Func(edges)}) {
            output.split(y, strip, yi, 32, TailStrategy::GuardWithIf).vectorize(x, vector).parallel(strip);
        }
        detail.compute_root().split(y, strip, yi, 32, TailStrategy::GuardWithIf).vectorize(x, vector).parallel(strip);
        across.store_at(detail, strip).compute_at(detail, yi).vectorize(x, vector).update().vectorize(x, vector);
        blurred.compute_at(detail, yi).vectorize(x, vector).update().vectorize(x, vector);
    }

private:
    Var x{"x"}, y{"y"};
    Func inside, grey{"grey"}, across{"across"}, blurred{"blurred"}, detail{"detail"};
};

}  // namespace

HALIDE_REGISTER_GENERATOR(Sharpen, sharpen)
