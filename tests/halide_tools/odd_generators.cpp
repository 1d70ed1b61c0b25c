// What Generators may have that the example has not: a Tuple, arrays, an input that nothing reads, scalars of many types, no schedule.
#include "../../examples/cpp/sharpen_generator.cpp"

class Odd : public Generator<Odd> {
public:
    Input<Buffer<int16_t, 1>> second{"second"};
    Input<Buffer<float, 1>> unused{"unused"};
    Input<bool> flag{"flag", false};
    Input<uint64_t> large{"large", 7};
    Input<int8_t> negative{"negative"};
    Input<Buffer<int16_t, 1>[2]> first{"first"};
    Output<Func> pair{"pair", {Int(32), Float(32)}, 1};

    void generate() {
        Var x("x");
        pair(x) = Tuple(cast<int>(first[0](x)) + first[1](x) + second(x) + negative, select(flag, 1.f, cast<float>(large)));
        for (size_t i = 0; i < first.size(); i++) {
            first[i].set_estimates({{-4, 100}});
        }
        second.set_estimates({{-4, 100}});
        unused.set_estimates({{0, 3}});
        flag.set_estimate(true);
        large.set_estimate(uint64_t(1) << 40);
        negative.set_estimate(-5);
        pair.set_estimates({{-4, 100}});
    }
};

HALIDE_REGISTER_GENERATOR(Odd, odd)

// Estimates of the output alone: a scalar has a default, and the size of the input is read by the boundary condition.
class FewEstimates : public Generator<FewEstimates> {
public:
    Input<Buffer<float, 2>> image{"image"};
    Input<float> gain{"gain", 0.5f};
    Input<int> shift{"shift"};
    Output<Buffer<float, 2>> result{"result"};

    void generate() {
        Var x("x"), y("y");
        result(x, y) = BoundaryConditions::repeat_edge(image)(x + shift, y - 1) * gain;
        result.set_estimates({{0, 96}, {0, 64}});
    }
};

HALIDE_REGISTER_GENERATOR(FewEstimates, few_estimates)
