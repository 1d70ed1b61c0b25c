// A Generator as C++ users of Halide write them. Built with -DSCHEDULED it takes the schedule in best.schedule.h.
#include "Halide.h"
#ifdef SCHEDULED
#include "best.schedule.h"
#endif

using namespace Halide;

class Blur : public Generator<Blur> {
public:
    Input<Buffer<float, 2>> image{"image"};
    Output<Buffer<float, 2>> result{"result"};

    void generate() {
        Var x("x"), y("y");
        Func across("across");
        across(x, y) = (image(x, y) + image(x + 1, y) + image(x + 2, y)) / 3;
        result(x, y) = (across(x, y) + across(x, y + 1) + across(x, y + 2)) / 3;
        image.set_estimates({{0, 1026}, {0, 1026}});
        result.set_estimates({{0, 1024}, {0, 1024}});
    }

    void schedule() {
#ifdef SCHEDULED
        if (!using_autoscheduler()) {
            apply_schedule_blur(get_pipeline(), target);
        }
#endif
    }
};

HALIDE_REGISTER_GENERATOR(Blur, blur)

int main(int argc, char **argv) {
    return Internal::generate_filter_main(argc, argv);
}
